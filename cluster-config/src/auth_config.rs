//! `[auth]` of a coordinator: whether callers need a key.

use serde::{Deserialize, Serialize};

use crate::config_text as text;
use crate::error::ConfigError;

/// Whether callers need a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// Requests without a key are refused; otherwise everybody is the tenant `default` with every right.
    pub keys_required: bool,
    /// Environment variable that holds the operator's own key, with which the first others are made.
    pub operator_key_env: String,
}

/// `[auth]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as AuthConfig")]
pub struct WrittenAuth {
    pub keys_required: Option<bool>,
    pub operator_key_env: Option<String>,
}

impl WrittenAuth {
    pub(crate) fn validate(self) -> Result<AuthConfig, ConfigError> {
        let operator_key_env = self.operator_key_env.unwrap_or_else(|| "SUSUI_OPERATOR_KEY".to_owned());
        text::check_word("auth.operator_key_env", &operator_key_env)?;
        Ok(AuthConfig { keys_required: self.keys_required.unwrap_or(false), operator_key_env })
    }
}
