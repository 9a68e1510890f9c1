"""What an iteration learns from keeps its names: algorithms pick columns by them."""

from lit_rlhf.rollout.experience import Experience, PolicyExperience


def test_an_experience_with_a_critic_has_all_of_one_without():
    without = ("rollouts", "logprobs", "ref_logprobs", "advantages", "importance")
    assert PolicyExperience._fields == without
    assert set(Experience._fields) == {*without, "values", "returns"}
