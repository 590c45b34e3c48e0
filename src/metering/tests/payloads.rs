//! Provider payloads through the wire format.
