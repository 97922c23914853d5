"""xmod_lab: pre-train modular multilingual encoders (X-MOD, Pfeiffer et al. 2022) and add languages to them."""

__version__ = "0.1.0"
