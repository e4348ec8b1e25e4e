"""The bus: signals between processes, and short logs of streamed text and output."""
