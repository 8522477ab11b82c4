"""What the data is: table schemas, records, keys and errors. No input or output happens here."""
