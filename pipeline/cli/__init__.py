"""The command line: commands, options, exit codes, and the stages in a row."""
