"""Frozen encoders of pictures beside a decoder of text: CLIP's vision transformers, and SigLIP's."""
