//! Kafka as users have it: logins, TLS, access control lists. On a broker of each case's own.
//!
//! # Layout
//! - [`acls`]: the rights that the documentation lists, granted and revoked
//! - [`ground`]: the broker's listeners, and a service's clients on them
//! - [`logins`]: who is let in, and what those hear who are not
//! - [`rights`]: what is needed, and what is said when it is missing; [`saga`]: the same of flow B

pub(crate) mod acls;
pub(crate) mod ground;
pub(crate) mod logins;
pub(crate) mod rights;
pub(crate) mod saga;
