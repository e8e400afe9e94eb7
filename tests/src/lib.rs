//! All planes together: scenarios in virtual time and live calls with real peers.
