#include "parallel/sequence/state_exchange.h"

namespace sluice {

StateMessages StateExchange::allocate(const Context& ctx, int64_t state_size,
                                      int64_t transition_size, DType dtype) const {
  return {.all = ctx.scratch->alloc({ranks(), state_size + transition_size}, dtype),
          .state_size = state_size};
}

StateExchange::Ticket StateExchange::begin(const StateMessages& messages) const {
  const TensorView& all = messages.all;
  SLUICE_CHECK(all.dim(0) == ranks(), ranks(), " ranks exchange ", all.dim(0), " messages");
  return {.event = group_.all_gather(all.row_range(rank(), 1), all)};
}

}  // namespace sluice
