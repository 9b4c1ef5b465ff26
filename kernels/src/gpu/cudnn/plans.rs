//! The plans of a GPU by what they are for: as many as a server that sees many sizes may hold.

use super::Request;
use crate::lru::Lru;

/// So many at most, 0.1 MB of the host's memory each. A picture of one size takes less than a hundred.
const MOST: usize = 1024;

/// Plans that were made, and for which requests there is none.
pub(super) struct Plans<Plan>(Lru<Request, Option<Plan>>);

impl<Plan> Plans<Plan> {
    pub(super) fn new() -> Self {
        Self(Lru::new())
    }

    /// The plan for a request, which `make` makes the first time. Where there are too many, those that were not used for
    /// longest go, half of all, so that this is rare: `may_go` sees to it that nothing uses a plan any more, and says so.
    pub(super) fn get_or_make(
        &mut self,
        request: &Request,
        may_go: impl FnOnce() -> bool,
        make: impl FnOnce() -> Option<Plan>,
    ) -> Option<&Plan> {
        if self.0.get(request).is_none() {
            let plan = make();
            let capacity = if self.0.len() < MOST || !may_go() { usize::MAX } else { MOST / 2 };
            self.0.insert(*request, plan, capacity);
        }
        self.get(request)
    }

    /// The plan for a request, if one was made.
    pub(super) fn get(&mut self, request: &Request) -> Option<&Plan> {
        self.0.get(request)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::gpu::cudnn::{Attention, DataType};

    fn request(queries: usize) -> Request {
        Request::Attention(Attention {
            of: DataType::F16,
            batch: 1,
            heads: 1,
            d: 64,
            queries,
            keys: 77,
            scale: 0,
            causal: false,
            bias: false,
        })
    }

    /// Plans that are numbers; there is none for 0.
    struct StandIn {
        plans: Plans<usize>,
        made: Cell<usize>,
        asked: Cell<usize>,
    }

    impl StandIn {
        fn prepare(&mut self, queries: usize, may_go: bool) {
            let may_go = || {
                self.asked.set(self.asked.get() + 1);
                may_go
            };
            let make = || {
                self.made.set(self.made.get() + 1);
                (queries > 0).then_some(queries)
            };
            let plan = self.plans.get_or_make(&request(queries), may_go, make);
            assert_eq!(plan.copied(), (queries > 0).then_some(queries));
        }
    }

    #[test]
    fn a_shape_is_planned_once_and_of_too_many_the_older_half_goes() {
        let mut all = StandIn { plans: Plans::new(), made: Cell::new(0), asked: Cell::new(0) };
        for _ in 0..2 {
            (0..MOST).for_each(|queries| all.prepare(queries, true));
        }
        assert_eq!(
            (all.made.get(), all.asked.get()),
            (MOST, 0),
            "what has no plan is not asked for again either"
        );
        // While they are in use all stay.
        all.prepare(MOST, false);
        assert_eq!((all.plans.0.len(), all.asked.get()), (MOST + 1, 1));
        all.prepare(1, true);
        all.prepare(MOST + 1, true);
        assert_eq!((all.plans.0.len(), all.asked.get()), (MOST / 2, 2));
        for (queries, is_there) in [(1, true), (MOST, true), (MOST + 1, true), (2, false), (MOST / 2, false)]
        {
            assert_eq!(all.plans.get(&request(queries)).is_some(), is_there, "{queries}");
        }
    }
}
