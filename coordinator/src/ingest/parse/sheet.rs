//! Spreadsheets, by calamine: a section per sheet, a line per row.

use std::io::Cursor;

use calamine::{Data, Reader, Xlsx};

use super::builder::Builder;
use super::package::Package;
use super::table::Table;
use super::{ParseError, Parsed};

/// Errors: `Malformed`, `Unpacked`.
pub(super) fn parse(bytes: &[u8], mut package: Package<'_>) -> Result<Parsed, ParseError> {
    package.call("XLSX");
    // calamine unpacks by itself, without a bound.
    package.check_size()?;
    let malformed = |error: calamine::XlsxError| package.malformed(error.to_string());
    let mut workbook = Xlsx::new(Cursor::new(bytes)).map_err(malformed)?;
    let mut builder = Builder::default();
    for name in workbook.sheet_names() {
        let range = workbook.worksheet_range(&name).map_err(malformed)?;
        if range.is_empty() {
            continue;
        }
        builder.heading(1, &name)?;
        let mut table = Table::default();
        for row in range.rows() {
            table.row(row.iter().map(cell).collect(), &mut builder)?;
        }
        table.finish(&mut builder)?;
    }
    Ok(builder.finish())
}

/// As a reader of the sheet would say it: dates as dates, not as the day's number.
fn cell(data: &Data) -> String {
    match data {
        Data::DateTime(date) if date.is_datetime() => {
            let (year, month, day, hour, minute, second, _) = date.to_ymd_hms_milli();
            let day = format!("{year:04}-{month:02}-{day:02}");
            if (hour, minute, second) == (0, 0, 0) { day } else { format!("{day} {hour:02}:{minute:02}:{second:02}") }
        }
        Data::Error(_) => String::new(),
        other => other.to_string(),
    }
}
