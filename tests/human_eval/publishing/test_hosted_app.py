import pytest
from starlette.testclient import TestClient

from human_eval.hosting.deployment import Deployment
from human_eval.publishing.hosted_app import create_hosted_app
from human_eval.publishing.replica import Place, Replica


@pytest.mark.parametrize("path", ["/", "/study/api/study", "/results/", "/admin/"])
def test_nobody_can_rate_where_votes_would_be_lost_and_the_page_says_what_to_do(tmp_path, path):
    replica = Replica(Place(tmp_path, kept=False), data_set=None)
    with TestClient(create_hosted_app(replica, Deployment(), every=600)) as client:
        while client.get("/healthz").status_code == 200:  # it is being opened
            pass
        response = client.get(path)

    assert response.status_code == 503
    assert "HF_TOKEN" in response.text and response.headers["retry-after"] == "30"
