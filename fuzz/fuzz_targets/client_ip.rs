//! The fuzz target `client_ip`.

#![cfg_attr(fuzzing, no_main)]

tollgate_fuzz::target!(tollgate_fuzz::check::client_ip);
