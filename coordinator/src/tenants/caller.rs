//! Who sends a request.

use std::sync::Arc;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{DEFAULT_TENANT, DocumentKey};
use uuid::Uuid;

pub use crate::catalog::keys::Scope;
use crate::catalog::tenants::TenantLimits;
use crate::error::{Error, Result};

/// Who sends a request. The API's extractor is in `api::auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose documents are read and written.
    pub tenant: Arc<str>,
    /// The largest scope that the key has.
    pub scope: Scope,
    /// The key; `None` where none is required, and for the operator's own.
    pub key_id: Option<Uuid>,
    /// The tenant's limits.
    pub limits: TenantLimits,
}

impl Caller {
    /// Everybody, where keys are not required; the operator, where they are.
    pub fn open() -> Self {
        Self { tenant: DEFAULT_TENANT.into(), scope: Scope::Admin, key_id: None, limits: TenantLimits::default() }
    }

    /// Errors: `PermissionDenied`, with the scope that is missing.
    pub fn check(&self, needed: Scope) -> Result<()> {
        if self.scope >= needed {
            return Ok(());
        }
        Err(Error::refused(
            ErrorKind::PermissionDenied,
            format!("the key has the scope {:?}, the call needs {:?}", self.scope.as_str(), needed.as_str()),
            "use a key with that scope; an operator makes one with: susui key create",
        ))
    }

    /// The identity of one of the caller's documents. Errors name the field.
    pub fn document_key(&self, path: &str, id: String) -> Result<DocumentKey> {
        DocumentKey::with_tenant(&*self.tenant, id)
            .map_err(|error| Error::field(path, error.to_string(), "choose another id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_include_the_smaller_ones() {
        let writer = Caller { scope: Scope::Write, ..Caller::open() };
        assert!(writer.check(Scope::Read).is_ok() && writer.check(Scope::Write).is_ok());
        assert_eq!(writer.check(Scope::Admin).expect_err("too much").kind(), ErrorKind::PermissionDenied);
        for scope in Scope::ALL {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
    }
}
