"""What a direction is, in memory and on disk: control vector, file, and what is known of it."""
