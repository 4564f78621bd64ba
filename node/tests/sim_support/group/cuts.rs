//! A node of the simulated group that is cut off from the others for a while, and perhaps from metadata too: what it believes grows old.

use super::{Group, Mail, node_of};

/// The node that is cut off.
pub(super) struct Cut {
    node: usize,
    from_metadata: bool,
    /// In steps of the simulation.
    until: u64,
}

impl Group {
    /// Cuts a node off, mostly the primary; metadata then mostly passes its role on.
    pub(super) fn cut(&mut self, any: usize) {
        self.count("cut");
        let primary = self.register.group.primary_copy().map(node_of);
        let node = primary.filter(|_| self.rng.percent(70)).unwrap_or(any);
        let until = self.steps + self.rng.next() % 400;
        self.cut = Some(Cut { node, from_metadata: self.rng.percent(70), until });
        if primary == Some(node) && self.rng.percent(70) {
            self.failover();
        }
    }

    pub(super) fn is_cut_from_metadata(&self, node: usize) -> bool {
        self.cut.as_ref().is_some_and(|cut| cut.from_metadata && cut.node == node && self.steps < cut.until)
    }

    pub(super) fn is_cut(&self, mail: &Mail) -> bool {
        let Some(cut) = self.cut.as_ref().filter(|cut| self.steps < cut.until) else { return false };
        match mail {
            Mail::Append { from, to, .. } | Mail::Confirm { from, to, .. } => [*from, *to].contains(&cut.node),
            Mail::Reply { to, result, .. } => [*to, node_of(result.copy)].contains(&cut.node),
            Mail::Confirmed { to, copy, .. } => [*to, node_of(*copy)].contains(&cut.node),
            Mail::Propose { from, .. } => cut.from_metadata && *from == cut.node,
            Mail::Decision { to, .. } | Mail::Register { to, .. } => cut.from_metadata && *to == cut.node,
        }
    }
}
