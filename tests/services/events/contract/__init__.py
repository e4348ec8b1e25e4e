"""What every bus promises: the local one (on disk, in memory) and that of Redis alike."""
