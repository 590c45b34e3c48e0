//! `waybill dev`.
