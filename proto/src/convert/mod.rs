//! Conversions between wire messages and the words of `cluster-config`.
//!
//! Outward they are total (`From`). Inward they are checked (`TryFrom`) for shape: what must be there is there, numbers fit,
//! lists that stand for maps have no key twice. Whether a collection spec is sensible or a batch is within its limits is for
//! the receiver to judge: bytes on disk go through here as well, and a limit lowered later must not make them unreadable.

pub mod cluster_state;
pub mod ids;
pub mod memory;
pub mod operation;
pub mod search;
pub mod status;

use cluster_config::error::ErrorKind;

/// A message that is not what its type promises: the dotted path of the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// Path within the message that was converted, such as `copies[1].role`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    kind: ErrorKind,
}

impl WireError {
    /// A field that breaks its rule.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), kind: ErrorKind::InvalidArgument }
    }

    /// Bytes that fail their checksum.
    pub fn corrupt(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), kind: ErrorKind::Corrupt }
    }

    pub(crate) fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "missing")
    }

    /// The same finding, seen from the message that has the converted one as its field `outer`.
    pub fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    /// `InvalidArgument`, or `Corrupt` where a checksum failed.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Converts the required message in `field`.
pub fn required<W, T>(field: &str, message: Option<W>) -> Result<T, WireError>
where
    T: TryFrom<W, Error = WireError>,
{
    let message = message.ok_or_else(|| WireError::missing(field))?;
    T::try_from(message).map_err(|error| error.within(field))
}

/// Converts each message of the list in `field`.
pub fn each<W, T>(field: &str, messages: Vec<W>) -> Result<Vec<T>, WireError>
where
    T: TryFrom<W, Error = WireError>,
{
    let convert =
        |(position, message)| T::try_from(message).map_err(|error| error.within(format_args!("{field}[{position}]")));
    messages.into_iter().enumerate().map(convert).collect()
}

/// Converts outward each item of a list.
pub fn to_wire<T, W: From<T>>(items: impl IntoIterator<Item = T>) -> Vec<W> {
    items.into_iter().map(W::from).collect()
}

/// Both directions between one of our enums and the generated one, whose `Unspecified` stands for a field nobody set.
macro_rules! convert_enum {
    ($ours:path, $wire:path, $field:literal, [$($variant:ident),+]) => {
        impl From<$ours> for $wire {
            fn from(value: $ours) -> Self {
                use $ours as Ours;
                match value {
                    $(Ours::$variant => Self::$variant,)+
                }
            }
        }

        impl TryFrom<$wire> for $ours {
            type Error = $crate::convert::WireError;

            fn try_from(value: $wire) -> Result<Self, Self::Error> {
                use $wire as Wire;
                match value {
                    $(Wire::$variant => Ok(Self::$variant),)+
                    Wire::Unspecified => Err($crate::convert::WireError::missing($field)),
                }
            }
        }
    };
}
pub(crate) use convert_enum;

/// Reads the number of an enum field. Errors: the number is unknown (a newer sender), or 0.
pub(crate) fn enum_field<W, T>(field: &str, number: i32) -> Result<T, WireError>
where
    W: TryFrom<i32>,
    T: TryFrom<W, Error = WireError>,
{
    let wire = W::try_from(number).map_err(|_| WireError::new(field, format!("unknown value {number}")))?;
    T::try_from(wire)
}
