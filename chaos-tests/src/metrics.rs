//! Samples of `/metrics`, as scenarios look at them. Whether the whole is the text format is what `tests/metrics.rs` asks a library.

use anyhow::ensure;

use crate::client::Client;

/// One line that is not a comment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// As written between the braces; empty without any.
    pub labels: &'a str,
    /// Its value.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label. Ours need no escapes and have no commas.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
    }
}

/// The samples of a series that have all of those labels with those values.
pub fn samples<'a>(text: &'a str, name: &'a str, wanted: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = Sample<'a>> {
    let all = text.lines().filter_map(move |line| {
        let (series, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let labels = match series {
            "" => "",
            labels => labels.strip_prefix('{')?.strip_suffix('}')?,
        };
        Some(Sample { labels, value: value.parse().ok()? })
    });
    all.filter(|sample| wanted.iter().all(|(label, value)| sample.label(label) == Some(value)))
}

/// The sum of the samples of a series that have those labels, 0 without any. Errors: no answer, or no series of that name.
pub async fn read(client: &Client, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let text = client.text("/metrics").await?;
    ensure!(samples(&text, name, &[]).next().is_some(), "no series {name}");
    Ok(samples(&text, name, labels).map(|sample| sample.value).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_told_apart_by_name_and_labels() {
        const TEXT: &str = "# HELP hits Lookups\n# TYPE hits counter\nhits{tier=\"a\",route=\"/c/{c}\"} 2\nhits{tier=\"b\",route=\"/d\"} 3.5\n\
                            hits_total 7\nup 1\n";
        let values = |name, labels| samples(TEXT, name, labels).map(|sample| sample.value).collect::<Vec<_>>();
        assert_eq!(values("hits", &[]), [2.0, 3.5]);
        assert_eq!(values("hits", &[("route", "/c/{c}")]), [2.0]);
        assert!(values("hits", &[("tier", "a"), ("route", "/d")]).is_empty());
        assert_eq!(values("up", &[]), [1.0]);
        assert_eq!(samples(TEXT, "hits", &[]).next().and_then(|sample| sample.label("tier")), Some("a"));
    }
}
