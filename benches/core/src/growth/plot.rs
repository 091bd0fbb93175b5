//! The plot: a panel for each growth, both axes logarithmic, in SVG. Its colours follow the reader's light or dark theme.

use std::fmt::Write as _;

use super::Growth;

const COLUMNS: usize = 4;
/// A panel with its labels, and the plot within it.
const PANEL: (f64, f64) = (210.0, 170.0);
const PLOT: (f64, f64) = (150.0, 100.0);
const PLOT_AT: (f64, f64) = (42.0, 26.0);

/// The room for the caption.
const CAPTION: f64 = 24.0;

const STYLE: &str = "text{font:10px sans-serif;fill:#24292f}.t{font-weight:bold}.a{stroke:#8c959f;fill:none}\
.l{stroke:#8c959f;fill:none;stroke-dasharray:3 3}.c{stroke:#0969da;fill:none;stroke-width:1.5}.p{fill:#0969da}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.c{stroke:#58a6ff}.p{fill:#58a6ff}}";

/// The plot of these growths. The vertical axis is the cost of a Check in units of that at the smallest size, the same
/// in every panel; the dashed line is a cost that is proportional to the size.
pub fn svg(growths: &[Growth]) -> String {
    let most = growths.iter().map(Growth::factor).fold(10.0_f64, f64::max);
    let decades = most.log10().ceil();
    let rows = growths.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL.0 * COLUMNS as f64, CAPTION + PANEL.1 * rows as f64);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>The cost of a Check, relative to the smallest size, by what grows</title>\n<style>{STYLE}</style>\n\
         <text x=\"{}\" y=\"15\">Processor time of a Check by size, in units of that at the smallest size; dashed: proportional to the size</text>\n",
        PLOT_AT.0
    );
    for (i, growth) in growths.iter().enumerate() {
        let (x, y) = ((i % COLUMNS) as f64 * PANEL.0, CAPTION + (i / COLUMNS) as f64 * PANEL.1);
        let _infallible =
            writeln!(text, "<g transform=\"translate({x} {y})\">\n{}</g>", panel(growth, decades));
    }
    text.push_str("</svg>\n");
    text
}

fn panel(growth: &Growth, decades: f64) -> String {
    let [(small, first), .., (large, _)] = growth.points[..] else { return String::new() };
    let (left, top) = PLOT_AT;
    let (right, bottom) = (left + PLOT.0, top + PLOT.1);
    let span = (large as f64 / small as f64).log10();
    let x_of = |size: f64| left + PLOT.0 * (size / small as f64).log10() / span;
    // Half a decade below 1, for costs that fall.
    let y_of = |times: f64| bottom - PLOT.1 * (times.max(0.4).log10() + 0.4) / (decades + 0.4);
    let mut text = format!(
        "<text class=\"t\" x=\"{left}\" y=\"14\">{}</text><path class=\"a\" d=\"M{left} {top}V{bottom}H{right}\"/>\n",
        growth.name
    );
    for decade in 0..=decades as i32 {
        let times = 10_f64.powi(decade);
        let y = y_of(times);
        let _infallible = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">×{times}</text><path class=\"a\" d=\"M{:.0} {y:.1}h-3\"/>",
            left - 5.0,
            y + 3.0,
            left
        );
    }
    for (size, anchor) in [(small, "start"), (large, "end")] {
        let x = x_of(size as f64);
        let _infallible = writeln!(
            text,
            "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{size}</text>",
            bottom + 13.0
        );
    }
    let ends = 10_f64.powf(span.min(decades));
    let _infallible = writeln!(
        text,
        "<path class=\"l\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/>",
        x_of(small as f64),
        y_of(1.0),
        x_of(small as f64 * ends),
        y_of(ends)
    );
    let points: Vec<(f64, f64)> =
        growth.points.iter().map(|(size, cost)| (x_of(*size as f64), y_of(cost / first))).collect();
    let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let _infallible = writeln!(text, "<path class=\"c\" d=\"M{}\"/>", line.join("L"));
    for (x, y) in points {
        let _infallible = writeln!(text, "<circle class=\"p\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>");
    }
    text
}
