"""From pictures and videos to objects."""
