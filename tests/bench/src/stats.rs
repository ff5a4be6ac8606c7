//! Medians and how far the samples lie apart.

/// The value below which `part` (0 to 1) of the samples lie. NaN without samples.
pub(crate) fn percentile(samples: &[f64], part: f64) -> f64 {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|x| x.is_finite()).collect();
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted.sort_by(f64::total_cmp);
    let at = part * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

/// Half the distance between the least and the largest sample, as a part of the median.
pub(crate) fn spread(samples: &[f64]) -> f64 {
    (percentile(samples, 1.0) - percentile(samples, 0.0)) / 2.0 / median(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(percentile(&[10.0, 20.0, 30.0], 1.0), 30.0);
        assert_eq!(spread(&[9.0, 10.0, 11.0]), 0.1);
        assert!(median(&[f64::NAN]).is_nan());
    }
}
