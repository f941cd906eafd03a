#!/bin/sh
# Puts a private copy of OpenAL into FOLDER when the system has none; usage: fetch_openal.sh PYTHON FOLDER
# The Stage recorder needs libopenal.so.1. Debian's packages are unpacked, not installed, so no root is
# needed. Where that is impossible it says so and succeeds: only the recorder is then out of reach.
set -u
python=$1
folder=$2

loads() { "$python" -c 'import ctypes; ctypes.CDLL("libopenal.so.1")' 2>/dev/null; }
give_up() {
  echo "note: no OpenAL ($1); Stage recording is off and its tests skip. Remedy: install libopenal1" >&2
  exit 0
}

loads && exit 0
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || give_up "no $tool here"
done

work=$(mktemp -d) || give_up "no temporary folder"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root" "$folder"
apt() {
  apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" \
    -o Debug::NoLocking=true -o APT::Sandbox::User=root "$@" </dev/null >/dev/null 2>&1
}
apt update || give_up "the package lists cannot be read"
# OpenAL and what it links to; names differ between releases, so those unknown here are passed over.
# In a shell of its own: PYTHON may be a path from where make stands.
(
  cd "$work" || exit
  for package in libopenal1 libsndio7.0 libasound2 libasound2t64 libbsd0 libmd0; do
    apt download "$package"
  done
)
for deb in "$work"/*.deb; do
  [ -f "$deb" ] && dpkg-deb -x "$deb" "$work/root"
done
find "$work/root" -name '*.so.*' -exec cp -P {} "$folder" \;
LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"
export LD_LIBRARY_PATH
loads || give_up "the unpacked packages do not load"
echo "OpenAL: private copy in $folder"
