//! OpenAPI documents of gates: their rules, and that the gate does what its document says.

mod agreement;
mod document;
mod rules;
mod settings;
mod validator;
