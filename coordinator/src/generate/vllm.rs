//! What vLLM tells of its load in `/metrics`: requests running and waiting, and how full its KV cache is.

use super::backend::Report;

/// The names by which versions of vLLM have called a series, newest first.
const RUNNING: [&str; 1] = ["vllm:num_requests_running"];
const WAITING: [&str; 1] = ["vllm:num_requests_waiting"];
const KV_USED: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];

/// Reads Prometheus' text format. Series of several engines behind one server are added up; of the cache the fullest counts.
pub(super) fn report(text: &str) -> Report {
    let values = |names: &[&str]| {
        let found: Vec<f64> = names.iter().map(|name| samples(text, name)).find(|found| !found.is_empty())?;
        Some(found)
    };
    let requests = match (values(&RUNNING), values(&WAITING)) {
        (None, None) => None,
        (running, waiting) => Some(running.into_iter().chain(waiting).flatten().sum::<f64>().max(0.0) as u32),
    };
    let kv_used = values(&KV_USED).map(|shares| shares.into_iter().fold(0.0, f64::max).clamp(0.0, 1.0) as f32);
    Report { requests, kv_used, on_gpu: None }
}

/// Values of all series of that name, whatever their labels.
fn samples(text: &str, name: &str) -> Vec<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
        if !rest.starts_with(' ') {
            return None;
        }
        rest.split_ascii_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())
    };
    text.lines().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_several_engines() {
        let text = "# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a } b\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\"} 2.0\n\
            vllm:num_requests_running_total 99\n\
            vllm:num_requests_waiting{engine=\"0\"} 4.0 1700000000\n\
            vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\n";
        assert_eq!(report(text), Report { requests: Some(9), kv_used: Some(0.25), on_gpu: None });
        let newer = format!("vllm:kv_cache_usage_perc 0.75\n{text}");
        assert_eq!(report(&newer).kv_used, Some(0.75));
        assert_eq!(report("not metrics"), Report::default());
    }
}
