"""How the playground's bases were made, and can be made again; and whether they have learned what they should."""
