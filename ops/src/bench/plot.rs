//! Draws recall against queries per second, as an SVG.

use plotters::prelude::*;

/// One setting of the knobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// As in the table.
    pub label: String,
    /// 0 to 1.
    pub recall: f64,
    /// Above 0.
    pub rate: f64,
}

const SIZE: (u32, u32) = (960, 600);
const FONT: &str = "sans-serif";

/// The drawing: a point with its label per setting, those of the index joined in the order of recall. Errors: nothing to draw.
pub fn svg(title: &str, places: &[Place]) -> Result<String, String> {
    let usable: Vec<&Place> = places.iter().filter(|place| place.rate > 0.0).collect();
    let recalls = usable.iter().map(|place| place.recall);
    let lowest = recalls.fold(1.0, f64::min);
    let (slowest, fastest) = usable
        .iter()
        .map(|place| place.rate)
        .fold((f64::INFINITY, 0.0), |(low, high), rate| (f64::min(low, rate), f64::max(high, rate)));
    if usable.is_empty() {
        return Err("there is nothing to draw".into());
    }
    let mut text = String::new();
    draw(&mut text, title, &usable, lowest, (slowest, fastest)).map_err(|error| error.to_string())?;
    Ok(text)
}

fn draw(
    text: &mut String,
    title: &str,
    places: &[&Place],
    lowest: f64,
    (slowest, fastest): (f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    // A little room around the outermost points; recall never exceeds 1.
    let left = (lowest - 0.02).max(0.0);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(left..1.01f64, (slowest / 1.5..fastest * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("recall@10")
        .y_desc("queries per second")
        .x_label_formatter(&|recall| format!("{recall:.2}"))
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .label_style((FONT, 13))
        .draw()?;
    let mut line: Vec<(f64, f64)> = places.iter().map(|place| (place.recall, place.rate)).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    chart.draw_series(LineSeries::new(line, BLUE.mix(0.4)))?;
    chart.draw_series(places.iter().map(|place| {
        EmptyElement::at((place.recall, place.rate))
            + Circle::new((0, 0), 4, BLUE.filled())
            + Text::new(place.label.clone(), (7, -14), (FONT, 12))
    }))?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(label: &str, recall: f64, rate: f64) -> Place {
        Place { label: label.into(), recall, rate }
    }

    #[test]
    fn every_setting_is_a_labelled_point() {
        let places = [place("nprobe 1", 0.4, 3000.0), place("exact", 1.0, 40.0)];
        let text = svg("wordnet", &places).expect("draws");
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        assert_eq!(text.matches("<circle").count(), 2);
        for word in ["nprobe 1", "exact", "wordnet", "recall@10", "queries per second"] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
    }

    #[test]
    fn one_point_is_drawn_and_none_is_refused() {
        assert!(svg("t", &[place("a", 1.0, 5.0)]).is_ok());
        assert!(svg("t", &[]).is_err());
        assert!(svg("t", &[place("a", 1.0, 0.0)]).is_err());
    }
}
