"""The engine: a tick's passes, their backends, the streams of several objects."""
