"""Process shells: configuration, server, worker and command line."""
