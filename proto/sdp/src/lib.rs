//! Session descriptions and the offer/answer model.
