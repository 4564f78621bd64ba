//! Which models may serve a request, and when each: the one that was asked for, the fast one under load, those that stand in. Pure.

use super::Policy;

/// Backends of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    /// `None`: each backend's own.
    pub(super) model: Option<String>,
    pub(super) opens: Opens,
}

/// When a lane is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opens {
    /// First.
    Always,
    /// While all before it are full or down.
    WhenFull,
    /// While all before it are down.
    WhenDown,
}

/// The lanes of a request for `model`, in order.
pub(super) fn lanes(policy: &Policy, model: Option<&str>) -> Vec<Lane> {
    let mut lanes = vec![Lane { model: model.map(str::to_owned), opens: Opens::Always }];
    let stand_ins = match model {
        Some(model) => policy.fallback_models.get(model).map(Vec::as_slice).unwrap_or_default(),
        None => &[],
    };
    if model.is_none() {
        let fast = policy.fast_model.clone();
        lanes.extend(fast.map(|model| Lane { model: Some(model), opens: Opens::WhenFull }));
    }
    lanes.extend(stand_ins.iter().map(|model| Lane { model: Some(model.clone()), opens: Opens::WhenDown }));
    lanes
}

/// Whether a backend of `served` belongs to `lane`. `is_known`: some backend is configured with the lane's model; if none is, any may have it.
pub(super) fn belongs(policy: &Policy, lane: &Lane, served: &str, is_known: bool) -> bool {
    match (&lane.model, lane.opens) {
        // The fast model keeps its places for the time when they are needed.
        (None, _) => policy.fast_model.as_deref() != Some(served),
        (Some(model), Opens::Always) => !is_known || model == served,
        (Some(model), _) => model == served,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(model: Option<&str>, opens: Opens) -> Lane {
        Lane { model: model.map(str::to_owned), opens }
    }

    #[test]
    fn what_may_serve_and_when() {
        let policy = Policy {
            fast_model: Some("fast".into()),
            fallback_models: [("big".to_owned(), vec!["mid".to_owned(), "small".to_owned()])].into(),
            ..Policy::default()
        };
        assert_eq!(lanes(&policy, None), [lane(None, Opens::Always), lane(Some("fast"), Opens::WhenFull)]);
        let big = [
            lane(Some("big"), Opens::Always),
            lane(Some("mid"), Opens::WhenDown),
            lane(Some("small"), Opens::WhenDown),
        ];
        assert_eq!(lanes(&policy, Some("big")), big);
        assert_eq!(lanes(&policy, Some("other")), [lane(Some("other"), Opens::Always)]);

        assert!(belongs(&policy, &lane(None, Opens::Always), "big", true));
        assert!(!belongs(&policy, &lane(None, Opens::Always), "fast", true));
        assert!(!belongs(&policy, &lane(Some("big"), Opens::Always), "mid", true));
        assert!(belongs(&policy, &lane(Some("unheard of"), Opens::Always), "mid", false), "it may have it");
        assert!(!belongs(&policy, &lane(Some("unheard of"), Opens::WhenDown), "mid", false));
    }
}
