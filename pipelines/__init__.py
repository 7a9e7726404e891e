"""Jobs of the project; see README.md for the map."""
