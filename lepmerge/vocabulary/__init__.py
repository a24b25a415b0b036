"""tokenizer.json as parsed, tokens as bytes, the conversion T between two vocabularies."""
