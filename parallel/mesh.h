// The ranks as a grid.
//
//   axis  neighbours hold                                    size
//   dp    other rows of the batch                            dp
//   cp    other tokens of the same rows                      cp
//   ep    other experts (and other rows): fast part of dp    ep
//   edp   other rows, the same experts: slow part of dp      dp / ep
//
// rank = (edp_index * ep + ep_index) * cp + cp_index: cp varies fastest, since its exchanges are
// the most frequent; dp_index = edp_index * ep + ep_index. (A tensor axis would vary faster than
// cp.)
//
// Who reduces what:
//   gradients of dense parameters        sum over {dp, cp}
//   gradients of experts                 sum over {edp, cp}
//   loss, target counts, gradient norm   sum over {dp, cp}
//   statistics of a row (balance loss)   sum over {cp}
//   expert counts for bias balancing     sum over {dp, cp}
//   states, halos, keys and values       exchanged over {cp}
//   tokens on their way to experts       exchanged over {ep}
//   optimizer state, dense / experts     sharded over {dp, cp} / {edp, cp}
#pragma once

#include <array>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace sluice {

enum class Axis : uint8_t { dp, ep, edp, cp };

struct MeshShape {
  int dp = 1;
  int ep = 1;
  int cp = 1;

  int world() const { return dp * cp; }
  int edp() const { return dp / ep; }
  friend bool operator==(const MeshShape& a, const MeshShape& b) = default;
};
std::string to_string(const MeshShape& shape);  // "dp 4 x ep 2 x cp 1"

struct MeshCoordinates {
  int dp = 0;
  int ep = 0;
  int edp = 0;
  int cp = 0;
  friend bool operator==(const MeshCoordinates& a, const MeshCoordinates& b) = default;
};

inline constexpr int kAuto = 0;

// `asked` with dp: auto (kAuto) filled in. Throws UsageError that names the nearest possible meshes
// if `world` ranks cannot form it.
MeshShape resolve_mesh(const MeshShape& asked, int world);
// All meshes of `world` ranks, in order of (cp, ep).
std::vector<MeshShape> possible_meshes(int world);

MeshCoordinates coordinates_of(const MeshShape& shape, int rank);
int rank_of(const MeshShape& shape, const MeshCoordinates& at);  // at.ep and at.edp follow at.dp

class Mesh {
 public:
  // Collective over `world`, which must outlive the mesh. `shape` is resolved.
  Mesh(Communicator& world, const MeshShape& shape);
  // The same place without the other ranks: all groups are planned (planned_communicator.h).
  Mesh(const MeshShape& shape, int rank);

  bool planned() const { return planned_world_ != nullptr; }
  const MeshShape& shape() const { return shape_; }
  const MeshCoordinates& at() const { return at_; }
  Communicator& world() const { return world_; }

  // This rank's group along an axis, or along several joined, ordered by world rank. Groups that
  // reduce (those with dp or edp) and groups that exchange (ep, cp) are different communicators
  // even where they are the same ranks, so that a bucket of gradients holds up no activation;
  // otherwise the same ranks are the same communicator: with ep 1, {edp, cp} is {dp, cp}.
  Communicator& axis(Axis axis) const { return joined({axis}); }
  Communicator& joined(std::initializer_list<Axis> axes) const;

  // What axes are called in figures: "cp", "ep", "dp", "dp+cp", "edp+cp". Axes of one rank are left
  // out, but for dp or edp where it reduces.
  struct Group {
    std::string axes;
    Communicator* group = nullptr;
  };
  // All of more than one rank, in a fixed order.
  std::vector<Group> groups() const;

  // Collective: waits for what was enqueued and leaves the groups' runtime, before the world's.
  // Only the destructor may follow.
  void shutdown();

 private:
  void make_groups();
  std::unique_ptr<Communicator> make_group(unsigned mask) const;

  std::unique_ptr<Communicator> planned_world_;  // null: there are ranks
  Communicator& world_;
  MeshShape shape_;
  MeshCoordinates at_;
  // By a mask of edp, ep and cp, those of one rank left out, and of whether it reduces.
  std::array<std::unique_ptr<Communicator>, 16> groups_;
};

}  // namespace sluice
