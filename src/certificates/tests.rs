//! What is read of PEM files, and what is refused.
