"""What every room stands on: errors, whole files, signals, progress, processes, devices."""
