//! Which rows a query may return: live, of its tenant, and passing its metadata filter.

use std::sync::Arc;

use cluster_config::collection::{CollectionSpec, FieldType};
use cluster_config::filter::{Condition, DOCUMENT_ID_FIELD, FieldValue, Filter, Predicate};
use roaring::RoaringTreemap;

use super::bitmaps::{read_set, read_union};
use super::keys::{self, BitmapKey, Family};
use super::records::{DocumentRecord, RowBody, corrupt, decode};
use super::store::{Frozen, Store};
use super::view::{Tenants, View};
use super::{ShardError, metadata_scan};
use crate::vector::{Cancel, RowSet};

/// Rows whose metadata is read between two looks at the deadline.
const ROWS_BETWEEN_CHECKS: usize = 256;

/// Evaluates filters on one view. Sets read from RocksDB may hold rows that came after the view; they are cut off at the end.
pub(crate) struct FilterReader<'a> {
    pub(crate) store: &'a Store,
    /// The database at the view's position, for a filter that [`reads_what_is`].
    pub(crate) frozen: Option<&'a Frozen<'a>>,
    pub(crate) spec: &'a CollectionSpec,
    pub(crate) view: &'a View,
    pub(crate) tenant: &'a str,
    pub(crate) cancel: &'a Cancel,
}

/// Whether evaluating the filter reads the documents directory or metadata, which say what *is*, not what the view's position says.
pub(crate) fn reads_what_is(spec: &CollectionSpec, filter: &Filter) -> bool {
    let conditions = [&filter.must, &filter.should, &filter.must_not].into_iter().flatten();
    conditions.into_iter().any(|condition| condition.field == DOCUMENT_ID_FIELD || is_scanned(spec, condition))
}

/// Whether the field has no index.
fn is_scanned(spec: &CollectionSpec, condition: &Condition) -> bool {
    condition.field != DOCUMENT_ID_FIELD && spec.filter_type(&condition.field) == Some(FieldType::Scan)
}

impl FilterReader<'_> {
    /// Rows that may be returned. The filter must have passed `Filter::validate`.
    pub(crate) fn allowed(&self, filter: &Filter) -> Result<RowSet, ShardError> {
        let row_end = self.view.applied.row_end;
        let tenant_rows = match &self.view.tenants {
            Tenants::One(only) if **only == *self.tenant => None,
            Tenants::None | Tenants::One(_) => Some(RoaringTreemap::new()),
            Tenants::Many => Some(read_set(self.store, &BitmapKey::Tenant { tenant: self.tenant })?),
        };
        if filter.is_empty() && tenant_rows.is_none() {
            return Ok(self.view.live_rows().clone());
        }
        let mut matching = tenant_rows.unwrap_or_else(|| self.all_rows());
        matching.remove_range(row_end..);
        // Those with an index first: they leave fewer rows to the others.
        let (scanned, indexed): (Vec<_>, Vec<_>) = filter.must.iter().partition(|one| is_scanned(self.spec, one));
        for condition in indexed.into_iter().chain(scanned) {
            if matching.is_empty() {
                break;
            }
            matching &= self.rows(condition, &matching)?;
        }
        if !filter.should.is_empty() && !matching.is_empty() {
            let mut any = RoaringTreemap::new();
            for condition in &filter.should {
                any |= self.rows(condition, &matching)?;
            }
            matching &= any;
        }
        for condition in &filter.must_not {
            if matching.is_empty() {
                break;
            }
            matching -= self.rows(condition, &matching)?;
        }
        Ok(RowSet::matching(row_end, &matching, &self.view.tombstones))
    }

    fn all_rows(&self) -> RoaringTreemap {
        let mut all = RoaringTreemap::new();
        all.insert_range(0..self.view.applied.row_end);
        all
    }

    /// Rows for which the condition holds, at least those of them that are among these.
    fn rows(&self, condition: &Condition, among: &RoaringTreemap) -> Result<RoaringTreemap, ShardError> {
        self.cancel.check()?;
        if condition.field == DOCUMENT_ID_FIELD {
            return self.rows_of_documents(&condition.predicate);
        }
        let field = condition.field.as_str();
        let Some(field_type) = self.spec.filter_type(field) else { return Ok(RoaringTreemap::new()) };
        if field_type == FieldType::Scan {
            return self.rows_by_metadata(condition, among);
        }
        match &condition.predicate {
            Predicate::Eq(value) => self.rows_with_value(field, field_type, value),
            Predicate::In(values) => {
                let mut any = RoaringTreemap::new();
                for value in values {
                    any |= self.rows_with_value(field, field_type, value)?;
                }
                Ok(any)
            }
            Predicate::Range { lower, upper } => {
                let Some((start, end)) = value_bounds(field, field_type, lower.as_ref(), upper.as_ref()) else {
                    return Ok(RoaringTreemap::new());
                };
                read_union(self.store, &start, end, || self.cancel.check().map_err(ShardError::from))
            }
            Predicate::Exists(wanted) => {
                let present = read_set(self.store, &BitmapKey::Exists { field })?;
                Ok(if *wanted { present } else { self.all_rows() - present })
            }
        }
    }

    fn rows_with_value(
        &self,
        field: &str,
        field_type: FieldType,
        value: &FieldValue,
    ) -> Result<RoaringTreemap, ShardError> {
        let Some(value) = keys::value(field_type, value) else { return Ok(RoaringTreemap::new()) };
        Ok(read_set(self.store, &BitmapKey::Value { field, value: &value })?)
    }

    fn frozen(&self) -> &Frozen<'_> {
        self.frozen.expect("taken with the view for every filter that reads what is")
    }

    /// Live rows among these for whose metadata the condition holds.
    fn rows_by_metadata(&self, condition: &Condition, among: &RoaringTreemap) -> Result<RoaringTreemap, ShardError> {
        let frozen = self.frozen();
        let mut rows = RoaringTreemap::new();
        for (position, row) in (among - &*self.view.tombstones).iter().enumerate() {
            if position % ROWS_BETWEEN_CHECKS == 0 {
                self.cancel.check()?;
            }
            let body = frozen.get(Family::Docs, &keys::row_body(row))?;
            let body = body.ok_or_else(|| corrupt("row body", &format!("live row {row} has none")))?;
            let RowBody { metadata_json, .. } = decode("row body", &body)?;
            if metadata_scan::holds(&metadata_json, &condition.field, &condition.predicate) {
                rows.insert(row);
            }
        }
        Ok(rows)
    }

    fn rows_of_documents(&self, predicate: &Predicate) -> Result<RoaringTreemap, ShardError> {
        let mut rows = RoaringTreemap::new();
        let mut add = |value: &[u8]| {
            let record: DocumentRecord = decode("document", value)?;
            rows.insert_range(record.rows());
            Ok::<_, crate::replication::storage::StorageError>(())
        };
        let ids: &[FieldValue] = match predicate {
            Predicate::Eq(id) => std::slice::from_ref(id),
            Predicate::In(ids) => ids,
            Predicate::Exists(true) => return Ok(self.all_rows()),
            Predicate::Exists(false) => return Ok(RoaringTreemap::new()),
            Predicate::Range { lower, upper } => {
                let (start, end) = document_bounds(self.tenant, lower.as_ref(), upper.as_ref());
                if start < end {
                    self.frozen().scan(Family::Documents, &start, Some(end), |_, value| add(value).map(|()| true))?;
                }
                return Ok(rows);
            }
        };
        for id in ids {
            let FieldValue::Keyword(id) = id else { continue };
            if let Some(value) = self.frozen().get(Family::Documents, &keys::document(self.tenant, id))? {
                add(&value)?;
            }
        }
        Ok(rows)
    }
}

type Bound<'a> = Option<&'a (FieldValue, bool)>;

/// Keys of the values within the bounds. Values end themselves, so the bytes after a value's prefix are its chunks.
fn value_bounds(
    field: &str,
    field_type: FieldType,
    lower: Bound<'_>,
    upper: Bound<'_>,
) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let prefix = keys::value_prefix(field);
    let start = match lower {
        None => prefix.clone(),
        Some((value, inclusive)) => {
            let key = [prefix.as_slice(), &keys::value(field_type, value)?].concat();
            if *inclusive { key } else { keys::after_prefix(&key)? }
        }
    };
    let end = match upper {
        None => keys::after_prefix(&prefix),
        Some((value, inclusive)) => {
            let key = [prefix.as_slice(), &keys::value(field_type, value)?].concat();
            if *inclusive { keys::after_prefix(&key) } else { Some(key) }
        }
    };
    match end {
        Some(end) if end <= start => None,
        end => Some((start, end)),
    }
}

fn document_bounds(tenant: &str, lower: Bound<'_>, upper: Bound<'_>) -> (Vec<u8>, Vec<u8>) {
    let (all_start, all_end) = keys::documents_of(tenant);
    let key = |value: &FieldValue| match value {
        FieldValue::Keyword(id) => keys::document(tenant, id),
        _ => all_end.clone(),
    };
    // Ids have no control characters, so the id with a 0 behind it is the next possible key.
    let after = |value: &FieldValue| {
        let mut next = key(value);
        next.push(0);
        next
    };
    let start = match lower {
        None => all_start,
        Some((value, inclusive)) => {
            if *inclusive {
                key(value)
            } else {
                after(value)
            }
        }
    };
    let end = match upper {
        None => all_end.clone(),
        Some((value, inclusive)) => {
            if *inclusive {
                after(value)
            } else {
                key(value)
            }
        }
    };
    (start, end)
}

/// Shares a tenant name cheaply.
pub(crate) fn tenants_on_disk(store: &Store) -> Result<Tenants, crate::replication::storage::StorageError> {
    let (start, end) = keys::tenant_bitmaps();
    let mut first: Option<Arc<str>> = None;
    store.scan(Family::Filters, &start, Some(end.clone()), |key, _| {
        first = Some(keys::parse_tenant_bitmap(key).ok_or_else(|| corrupt("tenant bitmap", "bad key"))?.into());
        Ok(false)
    })?;
    let Some(first) = first else { return Ok(Tenants::None) };
    let last = store.last(Family::Filters, &start, Some(end))?;
    let is_only = last.is_some_and(|(key, _)| keys::parse_tenant_bitmap(&key) == Some(&first));
    Ok(if is_only { Tenants::One(first) } else { Tenants::Many })
}
