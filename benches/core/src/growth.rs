//! How a cost grows with a size: its points, the exponent of its growth, the table and the plot.

pub mod plot;

/// Growth below this factor, over all sizes, is none: it is within the noise.
const NOISE: f64 = 1.25;

/// The cost of one operation at sizes that are each the same multiple of the one before.
#[derive(Clone, Debug)]
pub struct Growth {
    /// What grows.
    pub name: String,
    /// Size, and nanoseconds.
    pub points: Vec<(usize, f64)>,
}

impl Growth {
    /// The exponent of the part that grows: 1 is linear, 2 quadratic. From the increases at the end, so that what is
    /// constant does not count. `None` if the cost does not grow.
    pub fn exponent(&self) -> Option<f64> {
        let [.., (small, a), (middle, b), (large, c)] = self.points[..] else { return None };
        let (first, last) = (self.points.first()?.1, c);
        let step = large as f64 / middle as f64;
        let same_step = (middle as f64 / small as f64 / step - 1.0).abs() < 0.2;
        let grows = last > first * NOISE && b > a && c > b && same_step;
        grows.then(|| ((c - b) / (b - a)).ln() / step.ln())
    }

    /// Nanoseconds for each one more, over all sizes.
    pub fn each(&self) -> f64 {
        match self.points[..] {
            [(small, a), .., (large, b)] => (b - a) / (large - small) as f64,
            _ => 0.0,
        }
    }

    /// How many times the cost of the smallest size that of the largest is.
    pub fn factor(&self) -> f64 {
        match self.points[..] {
            [(_, a), .., (_, b)] => b / a,
            _ => 1.0,
        }
    }
}

/// A table of these growths, in Markdown.
pub fn table(growths: &[Growth]) -> String {
    let mut text = String::from(
        "| what grows | from | to | µs at first | µs at last | times | ns for one more | exponent |\n|---|---|---|---|---|---|---|---|\n",
    );
    for growth in growths {
        let [(small, a), .., (large, b)] = growth.points[..] else { continue };
        let exponent = growth.exponent().map_or("-".to_owned(), |exponent| format!("{exponent:.1}"));
        let line = format!(
            "| {} | {small} | {large} | {:.1} | {:.1} | {:.2} | {:.1} | {exponent} |\n",
            growth.name,
            a / 1e3,
            b / 1e3,
            growth.factor(),
            growth.each(),
        );
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(cost: impl Fn(f64) -> f64) -> Growth {
        let points = [1, 2, 4, 8, 16, 32, 64].map(|size| (size, cost(size as f64)));
        Growth { name: "size".to_owned(), points: points.to_vec() }
    }

    #[test]
    fn the_exponent_is_that_of_the_part_that_grows() {
        for (grown, expected) in [
            (growth(|_| 5.0), None),
            (growth(|n| 100.0 + n), Some("1.0")),
            (growth(|n| 100.0 + n * n), Some("2.0")),
            (growth(|n| 1_000.0 + n), None),
        ] {
            let exponent = grown.exponent().map(|exponent| format!("{exponent:.1}"));
            assert_eq!(exponent.as_deref(), expected, "{grown:?}");
        }
    }
}
