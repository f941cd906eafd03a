"""The speed of the path users run: parts, ticks, deadline, ceiling."""
