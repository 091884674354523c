//! The fuzz target `api_key`.

#![cfg_attr(fuzzing, no_main)]

tollgate_fuzz::target!(tollgate_fuzz::check::api_key);
