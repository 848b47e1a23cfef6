"""How results look: text.py for machines and plain terminals, table.py for terminals with colour."""
