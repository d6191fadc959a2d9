"""A second reader of everything that is signed or sealed, written from proto/SPEC.md.

It shares no code with the Rust implementation: the messages come from the .proto files, the primitives from the
`cryptography` package and hashlib, and the rest stands here. It exists to show that the format is what the text says,
and not only what one program does.
"""
