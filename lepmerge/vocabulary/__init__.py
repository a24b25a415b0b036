"""Read tokenizers, represent tokens as bytes, and build the conversion T between two vocabularies."""
