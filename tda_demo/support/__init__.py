"""What every room may use: errors, progress, files, this machine, imports that wait."""
