"""The page that `make demo` ends with: content read from datasets, drawn as one self-contained HTML file."""
