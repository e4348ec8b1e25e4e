"""Tables; no behaviour."""
