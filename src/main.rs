//! The `waybill` program: parses the command line and dispatches; nothing else.

fn main() {}
