//! A picture of how long answers took.

use std::fmt::Display;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tensact::simulate::Latencies;

/// Width and height.
const SIZE: (u32, u32) = (960, 480);

const BARS: usize = 60;

/// The axis ends at this many times the 99th percentile; what lies beyond is told in words.
const BEYOND: f64 = 1.5;

const INK: RGBColor = RGBColor(40, 44, 52);
const BAR: RGBColor = RGBColor(96, 146, 204);
const MARKS: [RGBColor; 3] = [RGBColor(38, 110, 60), RGBColor(176, 98, 0), RGBColor(176, 32, 32)];

/// A picture that cannot be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistogramError {
    /// No times were given.
    #[error("there is nothing to draw: nothing was answered")]
    Empty,
    /// The drawing failed.
    #[error("cannot draw the histogram: {0}")]
    Drawing(String),
}

fn drawing(error: impl Display) -> HistogramError {
    HistogramError::Drawing(error.to_string())
}

/// Times in bars of the same width, from 0 on.
#[derive(Debug, Clone, PartialEq)]
struct Bars {
    width: f64,
    counts: Vec<u64>,
    beyond: u64,
}

impl Bars {
    fn of(times: &[f64], latencies: &Latencies) -> Self {
        let end = latencies.max.min(latencies.p99 * BEYOND).max(1e-3);
        let width = end / BARS as f64;
        let mut bars = Self { width, counts: vec![0; BARS], beyond: 0 };
        for time in times {
            if *time > end {
                bars.beyond += 1;
            } else {
                bars.counts[((time / width) as usize).min(BARS - 1)] += 1;
            }
        }
        bars
    }

    fn end(&self) -> f64 {
        self.width * BARS as f64
    }

    fn highest(&self) -> u64 {
        self.counts.iter().copied().max().unwrap_or_default().max(1)
    }
}

/// A histogram of times in milliseconds as SVG, with marks at the 50th, 90th and 99th percentile.
///
/// # Errors
/// When there are no times.
pub fn histogram_svg(times: &[f64], title: &str) -> Result<String, HistogramError> {
    if times.is_empty() {
        return Err(HistogramError::Empty);
    }
    let latencies = Latencies::of(times.to_vec());
    let bars = Bars::of(times, &latencies);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let area = titled(&area, title, &subtitle(times.len(), &latencies, bars.beyond))?;
        draw(&area, &bars, &latencies)?;
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn subtitle(count: usize, latencies: &Latencies, beyond: u64) -> String {
    let mut text = format!("{count} answers, mean {:.1} ms, max {:.1} ms", latencies.mean, latencies.max);
    if beyond > 0 {
        text += &format!("; {beyond} beyond the right end");
    }
    text
}

fn text(size: u32, colour: &RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(colour)
}

/// Writes title and subtitle; the rest of the area is left.
fn titled<'a>(area: &Area<'a>, title: &str, subtitle: &str) -> Result<Area<'a>, HistogramError> {
    let centre = Pos::new(HPos::Center, VPos::Top);
    let middle = SIZE.0 as i32 / 2;
    // Letters are about half as wide as they are high.
    let letters = title.chars().count().max(1) as u32;
    let size = (2 * SIZE.0 / letters).clamp(10, 24);
    area.draw_text(title, &text(size, &INK).pos(centre), (middle, 12)).map_err(drawing)?;
    area.draw_text(subtitle, &text(16, &INK).pos(centre), (middle, 40)).map_err(drawing)?;
    Ok(area.split_vertically(62).1)
}

fn draw(area: &Area<'_>, bars: &Bars, latencies: &Latencies) -> Result<(), HistogramError> {
    let highest = bars.highest() as f64;
    // Room above the highest bar for the words at the marks.
    let top = highest * 1.3;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..bars.end(), 0.0..top)
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK)
        .label_style(text(15, &INK))
        .axis_desc_style(text(16, &INK))
        .x_desc("from observation to actions, ms")
        .y_desc("answers")
        .x_label_formatter(&|ms| plain(*ms))
        .y_label_formatter(&|count| if count.fract() == 0.0 { plain(*count) } else { String::new() })
        .draw()
        .map_err(drawing)?;
    let rectangles = bars.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, count)| {
        let left = index as f64 * bars.width;
        let mut bar = Rectangle::new([(left, 0.0), (left + bars.width, *count as f64)], BAR.filled());
        bar.set_margin(0, 0, 0, 1);
        bar
    });
    chart.draw_series(rectangles).map_err(drawing)?;
    let marks = [("p50", latencies.p50), ("p90", latencies.p90), ("p99", latencies.p99)];
    for (index, ((name, ms), colour)) in marks.into_iter().zip(MARKS).enumerate() {
        // Each at its own height, so that the words of close ones do not cover each other.
        let height = top * (0.99 - 0.07 * index as f64);
        let line = PathElement::new([(ms, 0.0), (ms, height)], colour.stroke_width(2));
        chart.draw_series([line]).map_err(drawing)?;
        let left = ms > bars.end() * 0.8;
        let place = Pos::new(if left { HPos::Right } else { HPos::Left }, VPos::Top);
        let words = format!("{name} {ms:.1} ms");
        let offset = if left { -6 } else { 6 };
        let word =
            EmptyElement::at((ms, height)) + Text::new(words, (offset, 0), text(16, &colour).pos(place));
        chart.draw_series([word]).map_err(drawing)?;
    }
    Ok(())
}

/// A number without more digits than it needs.
fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_a_bar_or_beyond() {
        let mut times: Vec<f64> = (1..=199).map(f64::from).collect();
        times.push(10_000.0);
        let bars = Bars::of(&times, &Latencies::of(times.clone()));
        assert_eq!(bars.beyond, 1);
        assert_eq!(bars.counts.iter().sum::<u64>(), 199);
        assert!((bars.end() - 297.0).abs() < 1e-9, "{}", bars.end());

        let same = Bars::of(&[5.0; 7], &Latencies::of(vec![5.0; 7]));
        assert_eq!((same.beyond, same.counts[BARS - 1]), (0, 7), "the slowest is in the last bar");
    }

    #[test]
    fn title_and_percentiles_are_text_in_the_picture() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        let svg = histogram_svg(&times, "<robots> & more").unwrap();
        for words in ["&lt;robots&gt; &amp; more", "p50 50.0 ms", "p90 90.0 ms", "p99 99.0 ms", "100 answers"]
        {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert!(svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn nothing_is_not_drawn() {
        assert_eq!(histogram_svg(&[], "nothing"), Err(HistogramError::Empty));
    }

    #[test]
    fn times_of_zero_are_drawn() {
        assert!(histogram_svg(&[0.0], "fast").unwrap().contains("p99 0.0 ms"));
    }
}
