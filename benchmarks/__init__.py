"""Repeatable measurements, each printing ratios against a named peer or limit."""
