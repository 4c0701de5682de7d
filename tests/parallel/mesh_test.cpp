#include "parallel/mesh.h"

#include <algorithm>

#include "tests/parallel/backends.h"

namespace sluice::test {
namespace {

std::string refusal(const MeshShape& asked, int world) {
  try {
    resolve_mesh(asked, world);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Mesh, RanksAndCoordinatesAreInverse) {
  for (int world = 1; world <= 48; ++world) {
    for (const MeshShape& shape : possible_meshes(world)) {
      ASSERT_EQ(shape.world(), world);
      for (int rank = 0; rank < world; ++rank) {
        const MeshCoordinates at = coordinates_of(shape, rank);
        ASSERT_EQ(rank_of(shape, at), rank) << to_string(shape);
        ASSERT_EQ(at.dp, at.edp * shape.ep + at.ep);
        ASSERT_TRUE(at.ep < shape.ep && at.edp < shape.edp() && at.cp < shape.cp);
        // cp is fastest, then ep, then edp.
        if (at.cp + 1 < shape.cp) {
          ASSERT_EQ(coordinates_of(shape, rank + 1).cp, at.cp + 1);
          ASSERT_EQ(coordinates_of(shape, rank + 1).dp, at.dp);
        }
        if (at.ep + 1 < shape.ep) {
          ASSERT_EQ(coordinates_of(shape, rank + shape.cp).ep, at.ep + 1);
          ASSERT_EQ(coordinates_of(shape, rank + shape.cp).edp, at.edp);
        }
      }
    }
  }
  EXPECT_THROW(coordinates_of({.dp = 2}, 2), Error);
  EXPECT_THROW(rank_of({.dp = 2}, {.dp = 2}), Error);
}

TEST(Mesh, AutoFillsTheWorld) {
  EXPECT_EQ(resolve_mesh({.dp = kAuto}, 6), (MeshShape{.dp = 6}));
  EXPECT_EQ(resolve_mesh({.dp = kAuto, .ep = 3, .cp = 2}, 6), (MeshShape{3, 3, 2}));
  EXPECT_EQ(resolve_mesh({.dp = 4, .ep = 2, .cp = 2}, 8), (MeshShape{4, 2, 2}));
}

TEST(Mesh, RefusesTheImpossibleAndNamesTheNearest) {
  EXPECT_EQ(refusal({.dp = kAuto, .ep = 1, .cp = 3}, 8),
            "parallel.cp 3 does not divide the 8 ranks started; 8 ranks can form, nearest first: "
            "dp 2 x ep 1 x cp 4, or dp 4 x ep 1 x cp 2, or dp 2 x ep 2 x cp 4");
  EXPECT_EQ(
      refusal({.dp = 3, .ep = 1, .cp = 1}, 4),
      "parallel.dp 3 x parallel.cp 1 needs 3 ranks, 4 were started; 4 ranks can form, nearest "
      "first: dp 4 x ep 1 x cp 1, or dp 4 x ep 2 x cp 1, or dp 2 x ep 1 x cp 2");
  EXPECT_EQ(refusal({.dp = 8, .ep = 3, .cp = 1}, 8),
            "parallel.ep 3 does not divide parallel.dp 8; 8 ranks can form, nearest first: "
            "dp 8 x ep 4 x cp 1, or dp 8 x ep 2 x cp 1, or dp 8 x ep 8 x cp 1");
  EXPECT_NE(refusal({.dp = 2}, 1).find("needs 2 ranks, 1 was started; 1 rank can form"),
            std::string::npos);
  EXPECT_NE(refusal({.dp = 1, .ep = 0, .cp = 1}, 1), "");
  EXPECT_NE(refusal({.dp = -2, .ep = 1, .cp = 1}, 1), "");
  EXPECT_NE(refusal({.dp = 1 << 20, .ep = 1, .cp = 1 << 20}, 1), "");
}

class MeshGroups : public OnBackend {};

// The world ranks of a group, in its order.
std::vector<int32_t> members(Communicator& group, int world_rank) {
  int32_t own = world_rank;
  std::vector<int32_t> ranks(group.size());
  group.all_gather(TensorView(&own, {1}), TensorView(ranks.data(), {group.size()})).wait();
  return ranks;
}

TEST_P(MeshGroups, HoldTheRanksThatDifferOnTheirAxesOnly) {
  run([](Communicator& comm) {
    for (const MeshShape& shape : possible_meshes(comm.size())) {
      SCOPED_TRACE(to_string(shape));
      const Mesh mesh(comm, shape);
      const auto check = [&](Communicator& group, bool edp, bool ep, bool cp) {
        std::vector<int32_t> expected;
        for (int rank = 0; rank < comm.size(); ++rank) {
          const MeshCoordinates at = coordinates_of(shape, rank);
          const bool same = (edp || at.edp == mesh.at().edp) && (ep || at.ep == mesh.at().ep) &&
                            (cp || at.cp == mesh.at().cp);
          if (same) expected.push_back(rank);
        }
        EXPECT_EQ(members(group, comm.rank()), expected);
      };
      check(mesh.axis(Axis::dp), true, true, false);
      check(mesh.axis(Axis::ep), false, true, false);
      check(mesh.axis(Axis::edp), true, false, false);
      check(mesh.axis(Axis::cp), false, false, true);
      check(mesh.joined({Axis::dp, Axis::cp}), true, true, true);
      check(mesh.joined({Axis::edp, Axis::cp}), true, false, true);
      check(mesh.joined({Axis::ep, Axis::cp}), false, true, true);
      EXPECT_EQ(&mesh.joined({Axis::cp, Axis::dp}), &mesh.joined({Axis::dp, Axis::cp}));
      if (shape.ep == 1) {
        EXPECT_EQ(&mesh.joined({Axis::edp, Axis::cp}), &mesh.joined({Axis::dp, Axis::cp}));
      }
      // Activations and gradients never share a queue.
      EXPECT_NE(&mesh.axis(Axis::cp), &mesh.joined({Axis::dp, Axis::cp}));
      EXPECT_NE(&mesh.axis(Axis::ep), &mesh.axis(Axis::dp));
      EXPECT_EQ(mesh.axis(Axis::cp).rank(), mesh.at().cp);
      EXPECT_EQ(mesh.axis(Axis::dp).rank(), mesh.at().dp);
      EXPECT_EQ(mesh.axis(Axis::ep).rank(), mesh.at().ep);
      EXPECT_EQ(mesh.axis(Axis::edp).rank(), mesh.at().edp);
    }
  });
}

TEST_P(MeshGroups, APlannedMeshHasTheSameGroups) {
  run([](Communicator& comm) {
    for (const MeshShape& shape : possible_meshes(comm.size())) {
      const Mesh mesh(comm, shape);
      const Mesh planned(shape, comm.rank());
      EXPECT_EQ(planned.at(), mesh.at());
      EXPECT_EQ(planned.world().size(), comm.size());
      const std::vector<Mesh::Group> expected = mesh.groups();
      const std::vector<Mesh::Group> got = planned.groups();
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].axes, expected[i].axes);
        EXPECT_EQ(got[i].group->size(), expected[i].group->size()) << got[i].axes;
        EXPECT_EQ(got[i].group->rank(), expected[i].group->rank()) << got[i].axes;
      }
    }
  });
}

TEST(Mesh, NamesItsGroupsByTheirAxes) {
  const auto names = [](const MeshShape& shape) {
    std::string names;
    const Mesh mesh(shape, 0);
    for (const Mesh::Group& group : mesh.groups())
      names += concat(group.axes, " ", group.group->size(), ", ");
    return names;
  };
  EXPECT_EQ(names({.dp = 1}), "");
  EXPECT_EQ(names({.dp = 4}), "dp 4, ");
  EXPECT_EQ(names({.dp = 1, .ep = 1, .cp = 2}), "cp 2, dp+cp 2, ");
  EXPECT_EQ(names({.dp = 2, .ep = 2, .cp = 1}), "ep 2, dp 2, ");
  EXPECT_EQ(names({.dp = 4, .ep = 2, .cp = 3}),
            "ep 2, cp 3, ep+cp 6, edp 2, dp 4, edp+cp 6, dp+cp 12, ");
}

TEST_P(MeshGroups, AMeshOfAnotherSizeIsRefused) {
  run([](Communicator& comm) { EXPECT_THROW(Mesh(comm, {.dp = comm.size() + 1}), Error); });
}

INSTANTIATE_TEST_SUITE_P(Communicators, MeshGroups, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace sluice::test
