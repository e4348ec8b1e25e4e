"""One function per computed field, answering for all parents at once."""
